-- Deletes flights that are still closed since before an instant.
-- KEYS, all of one hash tag: closed flights by close, positions (geo index); then the flights. ARGV: the instant; then
-- the flights' ids.
-- Answers how many it has deleted.
local deleted = 0
for at = 2, #ARGV do
    local id, flight = ARGV[at], KEYS[at + 1]
    local closed = redis.call('ZSCORE', KEYS[1], id)
    -- Opened again since it was looked up, or forgotten by another instance.
    if closed and tonumber(closed) < tonumber(ARGV[1]) then
        redis.call('DEL', flight)
        redis.call('ZREM', KEYS[1], id)
        -- Where a position came after the close, as it may after a failover.
        redis.call('ZREM', KEYS[2], id)
        deleted = deleted + 1
    end
end
return deleted
