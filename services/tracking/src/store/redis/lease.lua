#!lua flags=allow-oom
-- Replaces the leases, unless somebody else has since they were read.
-- KEYS: the leases. ARGV: the revision that was read ('0' where there were none); the leases.
-- Answers 1 where it was done.
-- Also by a store that is full: the relay that leases is who makes room.
local revision = redis.call('HGET', KEYS[1], 'revision') or '0'
if revision ~= ARGV[1] then
    return 0
end
redis.call('HSET', KEYS[1], 'revision', tonumber(revision) + 1, 'leases', ARGV[2])
return 1
