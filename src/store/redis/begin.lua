-- ARGV: token; fingerprint; sum of lease and memory; memory; what to do with a lapsed claim (0:
-- take it over, 1: refuse, 2: take it over even if its operation is known to be done); scope.
-- Returns {1, attempt} if started, {2, lease left} if in flight, {3} for a mismatch, {4} if the
-- outcome is unknown, {5} for a large record, or the stored bytes if they are not a claim.

-- Whether two fingerprints are of the same rule and differ. The first two bytes name the rule. A
-- fingerprint of another rule cannot be compared, and is treated as the same request.
local function conflict(print, asked)
  return print ~= asked and string.sub(print, 1, 4) == string.sub(asked, 1, 4)
end

local word, attempt, scope = 'claim', 1, ARGV[6]
local held = redis.pcall('GET', KEYS[1])
if type(held) == 'table' then
  head()
  return {5}
end
if held then
  local claim = claim_of(held)
  if not claim then return held end
  if claim.token == ARGV[1] then
    touch()
    return {1, claim.attempt}
  end
  if conflict(claim.print, ARGV[2]) then return {3} end
  if claim.ended and ARGV[5] ~= '2' then return {4} end
  if claim.left > 0 then return {2, claim.left} end
  if ARGV[5] == '1' then return {4} end
  -- If the settlement fails, the operation is still known to be done.
  if claim.ended then word = 'ended' end
  attempt, scope = math.min(claim.attempt + 1, 4294967295), claim.scope
end
put(string.format('%s %s %s %.0f %s %s', word, ARGV[1], ARGV[2], attempt, ARGV[4], scope), ARGV[3])
return {1, attempt}
