-- register: enters connections of one gateway into the registry, and gives each
-- the position in its user's log.
--
-- KEYS  1 lease  2 line  3 own  4 off  5 ev  6 num
--       then for each connection: conns, holders, state, watchers, log, stream
-- ARGV  1 gateway  2 channel prefix  3 presence TTL ms  4 stale after ms
--       5 fresh epoch  6 log TTL ms  7 events kept (0: none)  8 lease ms
--       9 'newest' or 'oldest': who keeps the place of a class of devices
--       then for each connection: id, user, device, meta, since ms,
--       limit of connections for the user (0: none), fence ('' for a new one;
--       given when a connection that the registry lost registers again), class,
--       limit of connections of the class for the user (0: none), which meta it is since it
--       registered first (0: that of then)
-- Returns one line for each connection, joined by LF:
--   "o fence epoch top first"  entered; first is the oldest offset kept
--   "m code reason by"         refused: while it was away, a newer connection
--                              of the same device took its place
--   "t by since"               refused: the class is full, and the oldest stay
-- Atomic: lease, fence, replacement, eviction, index, holders, online and its event.
-- Runs twice safely: an entry that is there already keeps its fence, counts once
-- and emits nothing.

--#include clock
--#include line
--#include life
--#include log
--#include entry
--#include event
--#include state

local gw, prefix, ttl, stale, oldestStay = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[9] == 'oldest'
local line = historyLine()
local ctx = { ev = KEYS[5], max = tonumber(ARGV[7]), off = KEYS[4], num = KEYS[6], prefix = prefix, fresh = ARGV[5], line = line }
local quiet

-- Who goes first when the user has too many: ended leases, then entries that
-- were not refreshed, then the oldest.
local function rank(e)
  if quiet == nil then quiet = quietTime(KEYS[2]) end
  if quiet then return 2 end -- nobody could refresh
  if leaseEnded(KEYS[1], e.gw) then return 0 end
  if now - (e.expiry - ttl) > stale then return 1 end
  return 2
end

local function evict(connsKey, others, limit, by)
  local alive = {}
  for i = 1, #others do
    if others[i].mark == '' then
      others[i].rank = rank(others[i])
      alive[#alive + 1] = others[i]
    end
  end
  table.sort(alive, function(a, b)
    if a.rank ~= b.rank then return a.rank < b.rank end
    return tonumber(a.fence) < tonumber(b.fence)
  end)
  for i = 1, #alive + 1 - limit do
    markEntry(connsKey, alive[i].id, alive[i], '4502', 'replaced', by, prefix)
  end
end

-- The places of a class: whoever comes takes one, from a connection that is hardly
-- there, else from the one that has to yield. What the same device has is free.
-- Returns who keeps the place from a newcomer, if somebody does, and else who has
-- to go; it marks nobody. A connection that registers again is judged by its
-- fence like the others, so that it neither gains nor loses by having been away.
local function takePlace(others, class, limit, device, fence)
  local alive, gone, go = {}, {}, {}
  for i = 1, #others do
    local e = others[i]
    if e.class == class and e.mark == '' and (device == '' or e.device ~= device) then
      if rank(e) < 2 then gone[#gone + 1] = e else alive[#alive + 1] = e end
    end
  end
  -- The first of these yield first.
  table.sort(alive, function(a, b)
    if oldestStay then return tonumber(a.fence) > tonumber(b.fence) end
    return tonumber(a.fence) < tonumber(b.fence)
  end)
  local over = #alive + 1 - limit
  for i = 1, over do
    local e = alive[i]
    local stays = tonumber(e.fence) > tonumber(fence)
    if oldestStay then stays = not stays end
    if stays then return e end
    go[#go + 1] = e
  end
  -- Those that are hardly there go only when they are in the way.
  table.sort(gone, function(a, b) return tonumber(a.fence) < tonumber(b.fence) end)
  for i = 1, math.min(#gone, #alive - math.max(over, 0) + 1 + #gone - limit) do
    go[#go + 1] = gone[i]
  end
  return nil, go
end

-- When an entry's place was taken, ms: a fence is a time, or just above one.
local function takenAt(e) return int(math.floor(tonumber(e.fence) / 1000)) end

local function position(logKey, streamKey)
  local L = openLog(logKey, streamKey, line, ARGV[5], ARGV[6])
  return L.epoch .. ' ' .. int(L.top) .. ' ' .. int(firstOffset(L, streamKey))
end

local function register(k, a)
  local connsKey, holdersKey, stateKey, watchKey, logKey, streamKey =
    KEYS[k], KEYS[k + 1], KEYS[k + 2], KEYS[k + 3], KEYS[k + 4], KEYS[k + 5]
  local id, user, device, meta, since, limit, fence, class, places, number =
    ARGV[a], ARGV[a + 1], ARGV[a + 2], ARGV[a + 3], ARGV[a + 4], tonumber(ARGV[a + 5]), ARGV[a + 6],
    ARGV[a + 7], tonumber(ARGV[a + 8]), ARGV[a + 9]

  local all = redis.call('HGETALL', connsKey)
  local others, highest, mine = {}, 0, nil
  for i = 1, #all, 2 do
    local e = parseEntry(all[i + 1])
    e.id = all[i]
    highest = math.max(highest, tonumber(e.fence))
    if e.id == id then mine = e else others[#others + 1] = e end
  end
  if mine then
    if mine.mark ~= '' then return 'm ' .. mine.mark end
    if rebind(KEYS[3], id, mine, number, meta) then redis.call('HSET', connsKey, id, formatEntry(mine)) end
    return 'o ' .. mine.fence .. ' ' .. position(logKey, streamKey)
  end

  local again = fence ~= ''
  if not again then fence = int(math.max(highest + 1, nowUs)) end
  -- Who is refused must have taken nothing from anybody, so marks come last.
  local go = {}
  if places > 0 then
    local keeper, losers = takePlace(others, class, places, device, fence)
    if keeper then
      if again then return 'm 4502 replaced ' .. keeper.id .. '\30' .. takenAt(keeper) end
      return 't ' .. keeper.id .. ' ' .. keeper.since
    end
    go = losers
  end
  for i = 1, #others do
    local e = others[i]
    if device ~= '' and e.device == device and e.mark == '' then
      if tonumber(e.fence) > tonumber(fence) then return 'm 4502 replaced ' .. e.id .. '\30' .. takenAt(e) end
      go[#go + 1] = e
    end
  end
  for i = 1, #go do markEntry(connsKey, go[i].id, go[i], '4502', 'replaced', id, prefix) end
  if limit > 0 and #others >= limit then evict(connsKey, others, limit, id) end

  redis.call('HSET', connsKey, id, formatEntry({
    fence = fence, expiry = now + ttl, gw = gw, mark = '', since = since, device = device, class = class, meta = meta }))
  redis.call('HINCRBY', holdersKey, gw, 1)
  redis.call('HSET', KEYS[3], id, fence .. SEP .. user .. SEP .. since .. SEP .. device .. SEP .. meta .. (number ~= '0' and SEP .. number or ''))
  if not again then
    emit(ctx, 'type', 'connect', 'user', user, 'conn', id, 'gateway', gw, 'device', device, 'meta', meta,
      'since', since, 'fence', fence, 'ms', int(now))
  end
  if #others == 0 then goOnline(ctx, user, stateKey, watchKey, again) end
  return 'o ' .. fence .. ' ' .. position(logKey, streamKey)
end

local out = {}
-- A registration is a sign of life: a gateway that Redis forgot has a lease again
-- before it has an entry, so no entry is ever without one to judge it by.
redis.call('ZADD', KEYS[1], 'GT', int(now + tonumber(ARGV[8])), gw)

local k, a = 7, 10
while ARGV[a] do
  out[#out + 1] = register(k, a)
  k, a = k + 6, a + 10
end
return table.concat(out, '\n')
