-- hold: makes a gateway a holder of addresses that are no user's (rooms, and watches of users), or ends that, and says which users it has
-- in the rooms.
--
-- KEYS  1 lease  2 line  3 own  4 mem  5 ev  6 num  7 tomb, then for each address: holders, and for a room its log, stream, members
--       and counts
-- ARGV  1 gateway  2 lease ms  3 fresh epoch  4 log TTL ms
--       5 '' or, for reaping, the ms after the end of the lease that must have passed
--       6 channel prefix  7 rooms of more members than this are told of no changes  8 events of rooms kept (0: none)
--       then for each address: the address, a word and a user:
--         '+'  hold it; the user, unless '', is in it on this gateway
--         '*'  the same, and the registry has said before that he is: Redis lost it, or this gateway was reaped
--         '='  as held as it is; the user is not in it on this gateway any more
--         '-'  let it go, with whomever this gateway has in it
-- Returns one line for each address, joined by LF:
--   "+ epoch top first"  a room, held; first is the oldest offset kept
--   "+"                  a watch, held; it has no log
--   "="                  done
--   "-"                  let go
--   "m"                  not yet let go: there were more members than one call takes out
--   or only "alive" when reaping was asked and the gateway may not be judged.
-- Atomic: lease, holders, own index and the position, so nothing is stored between the two that is neither below the position nor
-- published to the gateway; and members, their counts, their events and the word to the gateways that hold the room. Members of a gateway
-- are only where it is a holder. Runs twice safely: all are states, not steps, and who is there already, or is not, is told to nobody.

--#include clock
--#include line
--#include life
--#include reap
--#include log
--#include event

local gw, reapAfter, prefix, told = ARGV[1], ARGV[5], ARGV[6], tonumber(ARGV[7])
local ctx = { ev = KEYS[5], num = KEYS[6], max = tonumber(ARGV[8]) }
if reapAfter ~= '' and not mayReap(KEYS[1], KEYS[2], KEYS[7], gw, reapAfter) then return 'alive' end

local SEP, AFTER = '\31', '\32' -- no name holds SEP, and AFTER is next to it
local MOST_OUT, MOST_NAMED = 200, 100
local memberships, out = 0, MOST_OUT
local changed, news = {}, {} -- of rooms, by the key of their members

-- count(key, field, by) -> how many there are now
local function count(key, field, by)
  local n = redis.call('HINCRBY', key, field, by)
  if n <= 0 then redis.call('HDEL', key, field) end
  return n
end

local function happened(what, address, user, members)
  emit(ctx, 'type', what, 'user', user, 'room', string.sub(address, 3), 'gateway', gw, 'members', int(members), 'ms', int(now))
end

-- note(k, address, what): remembers for tell what becomes of a room.
local function note(k, address, what)
  local n = news[KEYS[k + 3]]
  if not n then
    n = { k = k, room = string.sub(address, 3), before = tonumber(redis.call('HGET', KEYS[k + 4], '')) or 0 }
    news[KEYS[k + 3]] = n
    changed[#changed + 1] = n
  end
  n[#n + 1] = what
end

-- where(k, user, most): where a user is in a room.
local function where(k, user, most)
  return redis.call('ZRANGE', KEYS[k + 3], '[u' .. user .. SEP, '(u' .. user .. AFTER, 'BYLEX', 'LIMIT', 0, most)
end

-- enter(k, address, user, again): what Redis lost of a room is written again without an event, as connections are.
local function enter(k, address, user, again)
  local here = 'u' .. user .. SEP .. gw
  if redis.call('ZADD', KEYS[k + 3], 0, here, 0, 'g' .. gw .. SEP .. user) == 0 then return end
  memberships = memberships + 1
  local at = where(k, user, 3)
  if #at == 1 then
    note(k, address, '+' .. user)
    local members = count(KEYS[k + 4], '', 1)
    count(KEYS[k + 4], gw, 1)
    if not again or redis.call('HEXISTS', KEYS[7], gw) == 1 then happened('joined', address, user, members) end
  elseif #at == 2 then
    count(KEYS[k + 4], string.sub(at[1] == here and at[2] or at[1], #user + 3), -1)
  end
end

local function leave(k, address, user)
  if redis.call('ZREM', KEYS[k + 3], 'u' .. user .. SEP .. gw, 'g' .. gw .. SEP .. user) == 0 then return end
  memberships = memberships - 1
  local at = where(k, user, 2)
  if #at == 0 then
    note(k, address, '-' .. user)
    local members = count(KEYS[k + 4], '', -1)
    count(KEYS[k + 4], gw, -1)
    happened('left', address, user, math.max(0, members))
  elseif #at == 1 then
    count(KEYS[k + 4], string.sub(at[1], #user + 3), 1)
  end
end

-- letGo(k, address, room): false when there is more to do than one call may.
local function letGo(k, address, room)
  if room then
    if out == 0 then return false end
    local all = redis.call('ZRANGE', KEYS[k + 3], '[g' .. gw .. SEP, '(g' .. gw .. AFTER, 'BYLEX', 'LIMIT', 0, out)
    for i = 1, #all do leave(k, address, string.sub(all[i], #gw + 3)) end
    if #all == out then
      out = 0
      return false
    end
    out = out - #all
  end
  redis.call('HDEL', KEYS[k], gw)
  redis.call('HDEL', KEYS[3], address)
  return true
end

-- tell(): says to the holders of each room who joined and left it, and how many
-- are there now, without those of gateways whose lease ended. It may be lost.
local function tell()
  local dead = quietTime(KEYS[2]) and {} or redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', '(' .. int(now))
  for _, n in ipairs(changed) do
    local counts = KEYS[n.k + 4]
    local total = tonumber(redis.call('HGET', counts, '')) or 0
    if math.min(n.before, total) <= told then
      for i = 1, #dead do total = total - (tonumber(redis.call('HGET', counts, dead[i])) or 0) end
      local word = '\1j' .. n.room .. '\n' .. int(total)
      if #n <= MOST_NAMED then word = word .. '\n' .. table.concat(n, '\n') end
      local holders = redis.call('HKEYS', KEYS[n.k])
      for i = 1, #holders do redis.pcall(PUBLISH, prefix .. holders[i], word) end
    end
  end
end

local line = historyLine()
local lines, k, leased = {}, 8, false
for a = 9, #ARGV, 3 do
  local address, word, user = ARGV[a], ARGV[a + 1], ARGV[a + 2]
  local room = string.sub(address, 1, 2) == 'r:'
  if word == '+' or word == '*' then
    if not leased then
      -- A sign of life: no holder is ever without a lease to judge it by.
      redis.call('ZADD', KEYS[1], 'GT', int(now + tonumber(ARGV[2])), gw)
      leased = true
    end
    redis.call('HSET', KEYS[k], gw, '1')
    redis.call('HSET', KEYS[3], address, '')
    if room then
      if user ~= '' then enter(k, address, user, word == '*') end
      local L = openLog(KEYS[k + 1], KEYS[k + 2], line, ARGV[3], ARGV[4])
      lines[#lines + 1] = '+ ' .. L.epoch .. ' ' .. int(L.top) .. ' ' .. int(firstOffset(L, KEYS[k + 2]))
    else
      lines[#lines + 1] = '+'
    end
  elseif word == '=' then
    leave(k, address, user)
    lines[#lines + 1] = '='
  else
    lines[#lines + 1] = letGo(k, address, room) and '-' or 'm'
  end
  k = k + (room and 5 or 1)
end
if memberships ~= 0 then count(KEYS[4], gw, memberships) end
if told > 0 and #changed > 0 then tell() end
return table.concat(lines, '\n')
