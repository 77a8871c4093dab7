-- ARGV: token, record, time to live, 1 if it was asked before and the answer was lost.
-- First what nearly all are, with as little as possible: the claim is there and the token is its own.
local held = redis.pcall('GET', KEYS[1])
if type(held) == 'string' and string.sub(held, 7, 22) == ARGV[1]
  and string.byte(held, 23) == 32 and string.find(held, ' ', 24, true) == 56 and ARGV[3] ~= '0' then
  local word = string.sub(held, 1, 6)
  if word == 'claim ' or word == 'ended ' then
    redis.call('SET', KEYS[1], ARGV[2] .. string.sub(held, -32), 'PX', ARGV[3])
    return 1
  end
end
