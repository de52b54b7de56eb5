-- keep: moves the cursors of devices, which say what each has kept for good.
--
-- KEYS  for each cursor: cursors of the user, log
-- ARGV  1 TTL ms  2 devices remembered for a user, then for each cursor: device,
--       epoch, offset
-- Returns for each cursor 1 when it moved, 0 when it stands further already, or
--   the position is not one of the log.
-- Atomic per cursor. Runs twice safely: a cursor only moves forward.
-- A position is judged in its own epoch: the present one reaches to top, one that
-- was rolled over to where it ended.

--#include clock
--#include log

-- reach(L, pairs, epoch) -> how many rolls ago the epoch was, where it ended, and
--   what of it is still in the log: a later roll may have lost more. nil: unknown.
local function reach(L, pairs, epoch)
  if epoch == L.epoch then return 0, L.top, L.top end
  local age, least = 0, L.top
  for e, top in string.gmatch(pairs or '', '(%S-):(%d+)') do
    age, top = age + 1, tonumber(top)
    least = math.min(least, top)
    if e == epoch then return age, top, least end
  end
end

local function keep(cursorsKey, logKey, device, epoch, offset)
  local v = redis.call('HMGET', logKey, 'h', 'p')
  if not v[1] then return 0 end
  local L = parseLog(v[1], string.match(v[1], '^%S+ %d+ (%S+)'), '')
  local age, top, least = reach(L, v[2], epoch)
  if not age or offset > top then return 0 end
  local stored = redis.call('HGET', cursorsKey, device)
  if stored then
    local e, o = string.match(stored, '^(%S+) (%d+)')
    local storedAge, _, storedLeast = reach(L, v[2], e)
    if storedAge then
      -- Offsets go on over a roll, so both say what they mean in the present log.
      local had, has = math.min(tonumber(o), storedLeast), math.min(offset, least)
      if had > has or had == has and storedAge <= age then
        redis.call('PEXPIRE', cursorsKey, ARGV[1]) -- a word all the same
        return 0
      end
    end
  elseif redis.call('HLEN', cursorsKey) >= tonumber(ARGV[2]) then
    -- The device that was silent for longest is forgotten.
    local all, oldest, least = redis.call('HGETALL', cursorsKey), nil, nil
    for i = 1, #all, 2 do
      local at = tonumber(string.match(all[i + 1], '(%d+)$'))
      if not least or at < least then oldest, least = all[i], at end
    end
    redis.call('HDEL', cursorsKey, oldest)
  end
  redis.call('HSET', cursorsKey, device, epoch .. ' ' .. int(offset) .. ' ' .. int(now))
  redis.call('PEXPIRE', cursorsKey, ARGV[1])
  return 1
end

local out, k = {}, 1
for i = 3, #ARGV, 3 do
  out[#out + 1] = keep(KEYS[k], KEYS[k + 1], ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2]))
  k = k + 2
end
return out
