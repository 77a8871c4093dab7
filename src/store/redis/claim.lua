-- A claim is one line of text: `claim TOKEN FINGERPRINT ATTEMPT MEMORY SCOPE`. The memory is how
-- long a lapsed claim is remembered, in milliseconds. The scope is the caller's tag, in 32
-- hexadecimal digits. In a record, the scope comes after the record's bytes, or is in a separate
-- field. The key lives for the sum of lease and memory. The time left of the lease is therefore the
-- key's remaining time minus the memory, and this server's clock is the only one. A claim that
-- begins with `ended` belongs to an operation that is done, for whose record the server had no
-- memory. Any other value that is not a record is not ours, and neither is a claim that would live
-- forever: nil.
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

-- A large record is stored in this field of a hash, not in a string. The claim's command then fails
-- at once, without transferring the record.
local FIELD = 'record'
local SCOPE = 'scope'
local LARGE = '\1large'

-- A claim is shorter than this, so a record need not be read completely to see that it is not a
-- claim.
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

-- A write that changes nothing. A server that has become a read-only replica refuses it, and is not
-- believed, because its data may be old. After this write, `WAIT` also covers the earlier writes of
-- other connections.
local function touch()
  local alive = redis.call('PTTL', KEYS[1])
  if alive > 0 then
    redis.call('PEXPIRE', KEYS[1], string.format('%.0f', alive))
  elseif alive == -2 then
    redis.call('DEL', KEYS[1])
  end
end

-- The reply for a token that does not hold the slot: 0, lost; 2, not ours.
local function not_held(held)
  touch()
  return (held == '' or is_record(held) or claim_of(held)) and 0 or 2
end

-- A time to live of 0 means that nothing is stored.
local function put(value, alive)
  if alive == '0' then
    redis.call('DEL', KEYS[1])
  else
    redis.call('SET', KEYS[1], value, 'PX', alive)
  end
end
