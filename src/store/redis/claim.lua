-- A claim is one line of text: `claim TOKEN FINGERPRINT ATTEMPT MEMORY`, the memory being the
-- milliseconds for which a claim that lapsed is remembered. The key lives for lease and memory, so
-- that what is left of the lease is what the key has left beyond the memory: this server's clock is
-- the only one. Anything else but a record, and a claim that would live for ever, is not ours: nil.
local function claim_of(held)
  local token, print, attempt, memory = string.match(held, '^claim (%x+) (%x+) (%d+) (%d+)$')
  local alive = token and redis.call('PTTL', KEYS[1])
  if not token or #token ~= 16 or #print ~= 32 or alive < 0 then return nil end
  return {
    token = token,
    print = print,
    attempt = tonumber(attempt),
    memory = tonumber(memory),
    alive = alive,
    left = math.max(alive - tonumber(memory), 0),
  }
end

-- A claim is shorter than this; a record need not be read whole to see that it is none.
local function head()
  return redis.call('GETRANGE', KEYS[1], 0, 127)
end

-- A record begins with its version, a byte below 32.
local function is_record(held)
  return held ~= '' and string.byte(held) < 32
end

-- What the holder of a token is told of a slot that it does not hold: 0, lost; 2, not ours.
local function not_held(held)
  return (held == '' or is_record(held) or claim_of(held)) and 0 or 2
end

-- The time to live 0 means: not at all.
local function put(value, alive)
  if alive == '0' then
    redis.call('DEL', KEYS[1])
  else
    redis.call('SET', KEYS[1], value, 'PX', alive)
  end
end
