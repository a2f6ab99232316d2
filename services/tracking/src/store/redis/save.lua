-- Saves the changes of one bucket: for each, all of it if the flight is at the version that it replaces, or else nothing
-- of it. Runs without `allow-oom`, so that a store that is full refuses the call before any write; but for a call of only
-- such changes as are owed (`Change::is_owed`): stages and ends.
--
-- KEYS, all of one hash tag: outbox stream, mission log stream, counts, positions (geo index), open flights by change,
-- closed flights by close, the channel of changes; then for each change its flight, and for each of its mission notes
-- the base's and the drone's set of flights.
-- ARGV: who saves; the instant, in microseconds; how a change is told (PUBLISH or SPUBLISH); how long a closed flight is
-- kept, in milliseconds; then for each change:
--   id, version that it replaces ('0' where there is no flight), version, fix, flight ('' where only the fix differs),
--   open ('1' or '0'), longitude ('' where the index takes none), latitude, instant of the change, instant of the close;
--   how many events, and for each: id, topic, key, kind, source, time, traceparent, data;
--   how many mission notes, and for each: assigned ('1' or '0'), note.
-- Answers a number for each change: 1 saved, 0 conflict.
local outbox, missions, counts, positions, open_flights, closed_flights, channel =
    KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7]
local next_key, next_argument = 8, 5
local origin, now, tell, keep = ARGV[1], ARGV[2], ARGV[3], ARGV[4]

local function key()
    next_key = next_key + 1
    return KEYS[next_key - 1]
end

local function take(count)
    local first = next_argument
    next_argument = next_argument + count
    return unpack(ARGV, first, next_argument - 1)
end

local any_events, any_missions = '0', '0'

local function append_events(won)
    for _ = 1, tonumber(take(1)) do
        local id, topic, about, kind, source, time, traceparent, data = take(8)
        if won then
            redis.call('XADD', outbox, '*', 'id', id, 'topic', topic, 'key', about, 'kind', kind, 'source', source,
                'time', time, 'traceparent', traceparent, 'data', data)
            any_events = '1'
        end
    end
end

local function log_missions(won, flight_id)
    for _ = 1, tonumber(take(1)) do
        local of_base, of_drone = key(), key()
        local assigned, note = take(2)
        if won then
            local change = assigned == '1' and 'SADD' or 'SREM'
            redis.call(change, of_base, flight_id)
            redis.call(change, of_drone, flight_id)
            local number = redis.call('HINCRBY', counts, 'missions', 1)
            redis.call('XADD', missions, number .. '-0', 'note', note, 'at', now)
            any_missions = '1'
        end
    end
end

-- Longitude, latitude and id of each flight that has moved: one command for all of them.
local places = {}

local function write(flight, id, version, fix, whole, is_open, longitude, latitude, changed, closed)
    if whole == '' then
        redis.call('HSET', flight, 'version', version, 'fix', fix)
    else
        redis.call('HSET', flight, 'version', version, 'fix', fix, 'flight', whole)
        if is_open == '1' then
            redis.call('PERSIST', flight)
            redis.call('ZADD', open_flights, changed, id)
            redis.call('ZREM', closed_flights, id)
        else
            redis.call('PEXPIRE', flight, keep)
            redis.call('ZREM', open_flights, id)
            redis.call('ZADD', closed_flights, closed, id)
        end
    end
    if longitude ~= '' then
        local last = #places
        places[last + 1], places[last + 2], places[last + 3] = longitude, latitude, id
    elseif whole ~= '' then
        redis.call('ZREM', positions, id)
    end
end

local outcomes, changed_flights = {}, {}
while next_argument <= #ARGV do
    local flight = key()
    local id, replaces, version, fix, whole, is_open, longitude, latitude, changed, closed = take(10)
    -- As text: a version may be larger than what Lua's numbers hold whole.
    local won = (redis.call('HGET', flight, 'version') or '0') == replaces
    if won then
        write(flight, id, version, fix, whole, is_open, longitude, latitude, changed, closed)
        changed_flights[#changed_flights + 1] = id
    end
    append_events(won)
    log_missions(won, id)
    outcomes[#outcomes + 1] = won and 1 or 0
end
if #places > 0 then
    redis.call('GEOADD', positions, unpack(places))
end
if #changed_flights > 0 then
    local words = table.concat(changed_flights, ' ')
    redis.call(tell, channel, origin .. ' ' .. any_events .. ' ' .. any_missions .. ' ' .. words)
end
return outcomes
