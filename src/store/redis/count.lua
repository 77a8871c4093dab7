-- Answers {running, lapsed, done} of the keys given. Only for a server that is no cluster node: there
-- may be many keys.
local running, lapsed, done = 0, 0, 0
for _, key in ipairs(KEYS) do
  local held = redis.pcall('GETRANGE', key, 0, 127)
  if type(held) == 'string' and held ~= '' then
    local memory = string.match(held, '^claim %x+ %x+ %d+ (%d+)$')
    if string.byte(held) < 32 then
      done = done + 1
    elseif memory and redis.call('PTTL', key) > tonumber(memory) then
      running = running + 1
    elseif memory then
      lapsed = lapsed + 1
    end
  end
end
return {running, lapsed, done}
