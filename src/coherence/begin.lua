#!lua flags=allow-oom
-- KEYS: epoch, epochs, started, applied, origin. ARGV: a number that the new epoch must exceed, the end of the
-- log as 16 hexadecimal digits, the word for the reason. Returns the new epoch. Without `applied` and
-- `origin` a flush that is not finished is begun again by whoever comes next.
local held = tonumber(redis.call('GET', KEYS[1]) or 0) or 0
local epoch = string.format('%d', math.max(held, tonumber(ARGV[1])) + 1)
redis.call('SET', KEYS[1], epoch)
redis.call('HINCRBY', KEYS[2], ARGV[3], 1)
redis.call('SET', KEYS[3], ARGV[2])
redis.call('DEL', KEYS[4], KEYS[5])
return epoch
