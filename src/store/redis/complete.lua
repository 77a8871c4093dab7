held = head()
local claim = claim_of(held)
if not claim or claim.token ~= ARGV[1] then
  if ARGV[4] == '1' and is_record(held) and held ~= LARGE and string.sub(redis.call('GET', KEYS[1]), 1, -33) == ARGV[2] then
    touch()
    return 1
  end
  return not_held(held)
end
put(ARGV[2] .. claim.scope, ARGV[3])
return 1
