-- The requests that wrk sends: a decision on one of a thousand users, which updates a row and adds
-- none. So bare and guarded requests do the same work for the application, however long the run
-- lasts.
--
--   wrk … -s requests.lua URL -- KIND PREFIX [session]
--
-- With `session`, each request is what the server is for: a verification, which waits for a
-- provider and adds rows.
--
-- KIND is `bare` (the key is in a header without a meaning), `first` (a new key each time) or
-- `replay` (a thousand keys again and again). PREFIX distinguishes this run's keys from other runs'
-- keys.

local users = 1000
local threads = 0

function setup(thread)
  thread:set("number", threads)
  threads = threads + 1
end

function init(args)
  kind, prefix, session = args[1], args[2], args[3] == "session"
  header = kind == "bare" and "X-No-Key" or "Idempotency-Key"
  count = number * 37
end

function request()
  count = count + 1
  local user = count % users
  local key
  if kind == "replay" then
    key = string.format("%s-the-same-%06d", prefix, user)
  else
    key = string.format("%s-%02d-%09d", prefix, number, count)
  end
  local headers = {
    ["Authorization"] = "Bearer sk_test_acme",
    ["Content-Type"] = "application/json",
    [header] = key,
  }
  if session then
    local body = string.format('{"user_id":"usr_%06d","workflow_id":"wkf_kyc_full"}', user)
    return wrk.format("POST", "/v1/verification/sessions", headers, body)
  end
  return wrk.format("PATCH", string.format("/v1/users/usr_%06d/status", user), headers, '{"status":"approved"}')
end

-- One line for load.py. The times are in microseconds.
function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    "result %d %d %d %d %d %d %d\n",
    summary.requests, summary.duration,
    errors.connect + errors.read + errors.write + errors.timeout + errors.status,
    latency:percentile(50), latency:percentile(99), latency:percentile(99.9), latency.max
  ))
end
