-- mayReap(leaseKey, lineKey, tombKey, gw, after): whether a gateway's lease ended at least so many ms ago, so that what it holds may be
-- taken out. Then it gets a tombstone: should it only have been paused, what it enters again is new. Its lease leaves with its last
-- entry: without one there is nothing to take. Needs clock and life.
local function mayReap(leaseKey, lineKey, tombKey, gw, after)
  local till = redis.call('ZSCORE', leaseKey, gw)
  if quietTime(lineKey) or (till and tonumber(till) + tonumber(after) > now) then return false end
  if till then redis.call('HSET', tombKey, gw, int(tonumber(till))) end
  return true
end
