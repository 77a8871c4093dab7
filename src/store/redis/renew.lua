-- ARGV: token, lease. The claim's text does not change, only the key's time to live.
local held = head()
local claim = claim_of(held)
if not claim or claim.token ~= ARGV[1] then return not_held(held) end
if not claim.ended then
  redis.call('PEXPIRE', KEYS[1], string.format('%.0f', tonumber(ARGV[2]) + claim.memory))
end
return 1
