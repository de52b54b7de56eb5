-- remove: takes connections of one gateway out of the registry, because they
-- ended, or because their gateway died (reaping).
--
-- KEYS  1 lease  2 line  3 own  4 off  5 ev  6 tomb  7 num  8 snap
--       then for each connection: conns, holders, state, watchers
-- ARGV  1 gateway that held them  2 channel prefix  3 grace ms  4 fresh epoch
--       5 events kept (0: none)
--       6 '' for an ordinary end; for reaping the ms after the end of the lease
--         that must have passed
--       then for each connection: id, fence ('' for whatever own says), user,
--       cause, how long it lived in ms ('' to take it from since), kind and code of
--       the end (0: none), its meta ('' for what the entry says)
-- Returns "removed left" where left is how many the gateway still owns in this
--   group, or "alive" when reaping was asked and the gateway may not be judged.
-- Atomic: entry, holders, own index, grace, offline and events.
-- Runs twice safely: it acts only where id, gateway and fence match, so a late
-- end can't erase a newer connection and a second call finds nothing.

--#include clock
--#include line
--#include life
--#include reap
--#include entry
--#include event
--#include state

local gw, prefix, grace, reapAfter = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[6]
local ctx = { ev = KEYS[5], max = tonumber(ARGV[5]), off = KEYS[4], num = KEYS[7], prefix = prefix, fresh = ARGV[4] }

if reapAfter ~= '' and not mayReap(KEYS[1], KEYS[2], KEYS[6], gw, reapAfter) then return 'alive' end

local removed = 0
local function remove(k, a)
  local connsKey, holdersKey, stateKey, watchKey = KEYS[k], KEYS[k + 1], KEYS[k + 2], KEYS[k + 3]
  local id, fence, user, cause, dur, kind, code, meta =
    ARGV[a], ARGV[a + 1], ARGV[a + 2], ARGV[a + 3], ARGV[a + 4], ARGV[a + 5], ARGV[a + 6], ARGV[a + 7]
  local owned = redis.call('HGET', KEYS[3], id)
  local v = redis.call('HGET', connsKey, id)
  local e = v and parseEntry(v)
  if fence == '' then fence = owned and string.match(owned, '^%d+') or (e and e.fence) end
  if owned and string.match(owned, '^%d+') == fence then redis.call('HDEL', KEYS[3], id) end
  if not e or e.gw ~= gw or e.fence ~= fence then return end

  removed = removed + 1
  redis.call('HDEL', connsKey, id)
  if redis.call('HINCRBY', holdersKey, gw, -1) <= 0 then redis.call('HDEL', holdersKey, gw) end
  if dur == '' then dur = int(math.max(0, now - tonumber(e.since))) end
  emit(ctx, 'type', 'disconnect', 'user', user, 'conn', id, 'gateway', gw, 'device', e.device, 'meta', meta ~= '' and meta or e.meta,
    'since', e.since, 'fence', e.fence, 'cause', cause, 'kind', kind, 'code', code, 'mark', string.match(e.mark, '^[^\30]*'), 'dur', dur, 'ms', int(now))
  if redis.call('HLEN', connsKey) == 0 then
    if grace > 0 then
      redis.call('ZADD', KEYS[4], int(now + grace), user)
    else
      goOffline(ctx, user, stateKey, watchKey)
    end
  end
end

local k = 9
for a = 7, #ARGV, 8 do
  remove(k, a)
  k = k + 4
end

local left = redis.call('HLEN', KEYS[3])
if reapAfter ~= '' and left == 0 then
  redis.call('ZREM', KEYS[1], gw)
  redis.call('HDEL', KEYS[7], gw)
  redis.call('HDEL', KEYS[8], gw)
end
return removed .. ' ' .. left
