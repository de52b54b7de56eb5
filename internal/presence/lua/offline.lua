-- offline: ends the grace period of users who did not come back.
--
-- KEYS  1 off  2 ev  3 line  4 num, then for each user: conns, state, watchers
-- ARGV  1 channel prefix  2 fresh epoch  3 events kept (0: none), then users
-- Returns the users whose grace is over and who were not named, 100 at most;
--   nobody in quiet time.
-- Atomic per user. Runs twice safely, on any gateway: only a user whose grace is
-- over and who has no connection changes, and leaves the set with it.

--#include clock
--#include line
--#include life
--#include entry
--#include event
--#include state

if quietTime(KEYS[3]) then return {} end
local ctx = { ev = KEYS[2], max = tonumber(ARGV[3]), off = KEYS[1], num = KEYS[4], prefix = ARGV[1], fresh = ARGV[2] }
local k = 5
for a = 4, #ARGV do
  local due = redis.call('ZSCORE', KEYS[1], ARGV[a])
  if due and tonumber(due) <= now then
    if redis.call('HLEN', KEYS[k]) == 0 then
      goOffline(ctx, ARGV[a], KEYS[k + 1], KEYS[k + 2])
    else
      redis.call('ZREM', KEYS[1], ARGV[a])
    end
  end
  k = k + 3
end
return redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', int(now), 'LIMIT', 0, 100)
