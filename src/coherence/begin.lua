#!lua flags=allow-oom
-- Begins an epoch. Returns its number.
-- KEYS: epoch, epochs, started, applied, origin. ARGV: the epoch that was found, or 0; a number
-- that the new epoch must exceed; the end of the log as 16 hexadecimal digits; the word for the
-- reason; the origin.
-- Without `applied` and `origin`, a flush that is not finished is begun again by the next daemon.
-- Within one history, `started` stays where another daemon raised it.
local held = redis.call('GET', KEYS[1]) or '0'
if held ~= ARGV[1] then
  return redis.error_reply('LOST the epoch ' .. ARGV[1] .. ', found ' .. held)
end
local epoch = string.format('%d', math.max(tonumber(held) or 0, tonumber(ARGV[2])) + 1)
redis.call('SET', KEYS[1], epoch)
redis.call('HINCRBY', KEYS[2], ARGV[4], 1)
local started = redis.call('GET', KEYS[3])
if not started or #started ~= 16 or started < ARGV[3] or redis.call('GET', KEYS[5]) ~= ARGV[5] then
  redis.call('SET', KEYS[3], ARGV[3])
end
redis.call('DEL', KEYS[4], KEYS[5])
return epoch
