-- Who counts as alive. Needs clock.
--   quietTime(lineKey)         true while nobody may be judged dead: no pulse was
--     ever seen, the last one of anyone is older than the gap the pulses agreed
--     on, or a quiet time is running. Lease time does not run while Redis is away.
--   leaseEnded(leaseKey, gw)   true when the gateway's lease is over, or gone.
local function quietTime(lineKey)
  local v = redis.call('HMGET', lineKey, 'pulse', 'gap', 'quiet')
  return not v[1] or now - v[1] > (tonumber(v[2]) or 1500) or now < (tonumber(v[3]) or 0)
end
local function leaseEnded(leaseKey, gw)
  local till = redis.call('ZSCORE', leaseKey, gw)
  return not till or tonumber(till) < now
end
