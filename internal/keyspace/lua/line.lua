-- historyLine(): which history this Redis tells. The id changes when a restart or
-- a failover may have lost a tail. 'none' where INFO has no replication section
-- (the embedded Redis, which loses all or nothing) or an ACL forbids it.
local function historyLine()
  local info = redis.pcall('INFO', 'replication')
  if type(info) ~= 'string' then return 'none' end
  return string.sub(string.match(info, 'master_replid:(%x+)') or 'none', 1, 12)
end
