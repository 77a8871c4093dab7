-- The server has no memory for the record of an operation that is done. Returns 1 if the record
-- takes no more memory than the claim and is stored, or 3 if the claim is kept instead. ARGV:
-- token; record, if it is short; time to live.
local held = head()
local claim = claim_of(held)
if not claim or claim.token ~= ARGV[1] then return not_held(held) end
-- This call needs no memory. After its first write, a script's further writes are not refused for
-- lack of memory.
redis.call('PEXPIRE', KEYS[1], ARGV[3])
if ARGV[2] ~= '' and #ARGV[2] + 32 <= #held then
  put(ARGV[2] .. claim.scope, ARGV[3])
  return 1
end
put('ended' .. string.sub(held, 6), ARGV[3])
return 3
