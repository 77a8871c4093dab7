-- ARGV: token, record, time to live.
local held = head()
local claim = claim_of(held)
if not claim or claim.token ~= ARGV[1] then return not_held(held) end
put(ARGV[2], ARGV[3])
return 1
