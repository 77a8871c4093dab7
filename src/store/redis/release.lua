-- ARGV: token.
local held = head()
local claim = claim_of(held)
if not claim or claim.token ~= ARGV[1] then return not_held(held) end
redis.call('DEL', KEYS[1])
return 1
