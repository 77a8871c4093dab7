-- ARGV: the same as for a record that is not large.
local held = head()
local claim = claim_of(held)
if not claim or claim.token ~= ARGV[1] then
  if ARGV[4] == '1' and held == LARGE and redis.call('HGET', KEYS[1], FIELD) == ARGV[2] then
    touch()
    return 1
  end
  return not_held(held)
end
-- The first write asks for memory before anything is changed, because the server does not refuse
-- memory to a script that has already written.
put('', ARGV[3])
redis.call('DEL', KEYS[1])
if ARGV[3] ~= '0' then
  redis.call('HSET', KEYS[1], FIELD, ARGV[2], SCOPE, claim.scope)
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
end
return 1
