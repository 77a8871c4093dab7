-- ARGV: a scope. Forgets that scope's records among the given keys, and returns how many. Only for
-- a server that is not a cluster node, because there may be many keys.
local forgotten = 0
for _, key in ipairs(KEYS) do
  local scope = false
  local first = redis.pcall('GETRANGE', key, 0, 0)
  if type(first) ~= 'string' then
    local held = redis.pcall('HGET', key, 'scope')
    scope = type(held) == 'string' and held
  elseif first ~= '' and string.byte(first) < 32 then
    scope = redis.call('GETRANGE', key, -32, -1)
  end
  if scope == ARGV[1] then
    forgotten = forgotten + redis.call('UNLINK', key)
  end
end
return forgotten
