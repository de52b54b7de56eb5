-- offline: ends the grace period of users who did not come back.
--
-- KEYS  1 off  2 ev, then for each user: conns, state, watchers
-- ARGV  1 channel prefix  2 fresh epoch  3 events kept (0: none), then users
-- Returns how many users went offline.
-- Atomic per user. Runs twice safely, on any gateway: only a user whose grace is
-- over and who has no connection changes, and leaves the set with it.

--#include clock
--#include entry
--#include state

local ctx = { ev = KEYS[2], max = tonumber(ARGV[3]), off = KEYS[1], prefix = ARGV[1], fresh = ARGV[2] }
local gone, k = 0, 3
for a = 4, #ARGV do
  local due = redis.call('ZSCORE', KEYS[1], ARGV[a])
  if due and tonumber(due) <= now then
    if redis.call('HLEN', KEYS[k]) == 0 then
      goOffline(ctx, ARGV[a], KEYS[k + 1], KEYS[k + 2])
      gone = gone + 1
    else
      redis.call('ZREM', KEYS[1], ARGV[a])
    end
  end
  k = k + 3
end
return gone
