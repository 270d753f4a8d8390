#!lua flags=allow-oom
-- Ends the flush of an epoch: from here on history is proven.
-- KEYS: applied, origin, epoch, batches. ARGV: the position at which the slot goes on, as 16
-- hexadecimal digits; the origin; the epoch whose flush is finished; how many batches the outbox
-- knows, or an empty string for a slot.
-- If the epoch is another one, another daemon or another dataset is at work.
if redis.call('GET', KEYS[3]) ~= ARGV[3] then
  return redis.error_reply('LOST the epoch ' .. ARGV[3])
end
redis.call('SET', KEYS[1], ARGV[1])
redis.call('SET', KEYS[2], ARGV[2])
if ARGV[4] ~= '' and (tonumber(redis.call('GET', KEYS[4]) or 0) or 0) < tonumber(ARGV[4]) then
  redis.call('SET', KEYS[4], ARGV[4])
end
return 1
