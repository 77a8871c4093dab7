-- A claim is one line of text: `claim TOKEN FINGERPRINT ATTEMPT MEMORY SCOPE`. The memory is the
-- milliseconds for which a claim that lapsed is remembered. The scope is the tag of the caller, in 32
-- hexadecimal digits; a record has it behind its bytes, or in a field of its own. The key lives for lease and memory, so
-- that what is left of the lease is what the key has left beyond the memory: this server's clock is
-- the only one. A claim that begins with `ended` instead is that of an operation that is done, and
-- for whose record the server had no memory. Anything else but a record, and a claim that would live
-- forever, is not ours: nil.
local function claim_of(held)
  local word, token, print, attempt, memory, scope = string.match(held, '^(%l+) (%x+) (%x+) (%d+) (%d+) (%x+)$')
  if word ~= 'claim' and word ~= 'ended' then return nil end
  local alive = redis.call('PTTL', KEYS[1])
  if #token ~= 16 or #print ~= 32 or #scope ~= 32 or alive < 0 then return nil end
  return {
    token = token,
    print = print,
    attempt = tonumber(attempt),
    memory = tonumber(memory),
    scope = scope,
    alive = alive,
    left = word == 'claim' and math.max(alive - tonumber(memory), 0) or 0,
    ended = word == 'ended',
  }
end

-- A large record is not a string but a hash with this field, so that the command that claims is
-- told at once, and transfers nothing.
local FIELD = 'record'
local SCOPE = 'scope'
local LARGE = '\1large'

-- A claim is shorter than this; a record need not be read whole to see that it is none.
local function head()
  local held = redis.pcall('GETRANGE', KEYS[1], 0, 127)
  if type(held) == 'string' then return held end
  local length = redis.pcall('HSTRLEN', KEYS[1], FIELD)
  if type(length) == 'number' and length > 0 then return LARGE end
  return error(held.err, 0)
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
