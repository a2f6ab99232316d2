-- Deletes flights that are still closed since before an instant.
-- KEYS, all of one hash tag: closed flights by close; then the flights. ARGV: the instant; then the flights' ids.
-- Answers how many it has deleted.
local deleted = 0
for at = 2, #KEYS do
    local closed = redis.call('ZSCORE', KEYS[1], ARGV[at])
    -- Opened again since it was looked up, or forgotten by another instance.
    if closed and tonumber(closed) < tonumber(ARGV[1]) then
        redis.call('DEL', KEYS[at])
        redis.call('ZREM', KEYS[1], ARGV[at])
        deleted = deleted + 1
    end
end
return deleted
