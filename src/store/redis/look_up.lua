-- Returns nil if the slot is vacant, {1, fingerprint, attempt, lease left, time left} for a claim,
-- {2, the first bytes, length, time left} for a record, or {3} for a value that is not ours. No
-- body leaves the server.
local held = head()
if held == LARGE then
  local record = redis.call('HGET', KEYS[1], FIELD)
  return {2, string.sub(record, 1, 32), #record, redis.call('PTTL', KEYS[1])}
end
if is_record(held) then
  return {2, string.sub(held, 1, 32), redis.call('STRLEN', KEYS[1]) - 32, redis.call('PTTL', KEYS[1])}
end
local claim = claim_of(held)
if claim then return {1, claim.print, claim.attempt, claim.left, claim.alive} end
if redis.call('EXISTS', KEYS[1]) == 1 then return {3} end
return nil
