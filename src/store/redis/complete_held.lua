-- ARGV: token; record; time to live; 1 if the call was sent before and its answer was lost. The
-- most common case comes first, with as little work as possible: the claim exists and has this
-- token.
local held = redis.pcall('GET', KEYS[1])
if type(held) == 'string' and string.sub(held, 7, 22) == ARGV[1]
  and string.byte(held, 23) == 32 and string.find(held, ' ', 24, true) == 56 and ARGV[3] ~= '0' then
  local word = string.sub(held, 1, 6)
  if word == 'claim ' or word == 'ended ' then
    redis.call('SET', KEYS[1], ARGV[2] .. string.sub(held, -32), 'PX', ARGV[3])
    return 1
  end
end
