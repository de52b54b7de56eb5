-- clock: Redis' own time, once for each call.
--   nowUs  microseconds since 1970    now  milliseconds since 1970
local nowUs, now
do
  local t = redis.call('TIME')
  nowUs = t[1] * 1000000 + t[2]
  now = math.floor(nowUs / 1000)
end
-- Whole numbers as text; .. alone would write 1e+14 from 10^14 on, and is slower.
local function int(n) return string.format('%d', n) end
