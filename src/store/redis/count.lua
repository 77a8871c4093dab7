-- Returns {running, lapsed, done} for the given keys. Only for a server that is not a cluster node,
-- because there may be many keys.
local running, lapsed, done = 0, 0, 0
for _, key in ipairs(KEYS) do
  local held = redis.pcall('GETRANGE', key, 0, 127)
  if type(held) ~= 'string' then
    local length = redis.pcall('HSTRLEN', key, 'record')
    if type(length) == 'number' and length > 0 then done = done + 1 end
  elseif held ~= '' then
    local word, memory = string.match(held, '^(%l+) %x+ %x+ %d+ (%d+) %x+$')
    if string.byte(held) < 32 then
      done = done + 1
    elseif word == 'ended' then
      lapsed = lapsed + 1
    elseif word == 'claim' and redis.call('PTTL', key) > tonumber(memory) then
      running = running + 1
    elseif word == 'claim' then
      lapsed = lapsed + 1
    end
  end
end
return {running, lapsed, done}
