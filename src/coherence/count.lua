#!lua flags=allow-oom
-- Counts a batch. Returns the new count.
-- KEYS[1]: `batches`. ARGV[1]: what was counted before.
-- The count follows the ops of its batch, so a dataset that holds the count holds the ops. A
-- dataset that holds less has lost writes. Counts are far below 2^53.
local held = redis.call('GET', KEYS[1])
if (tonumber(held or 0) or 0) < tonumber(ARGV[1]) then
  return redis.error_reply('LOST ' .. (held or 'nothing') .. ' is left of ' .. ARGV[1] .. ' batches')
end
return redis.call('INCR', KEYS[1])
