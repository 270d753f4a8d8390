#!lua flags=allow-oom
-- Records what is in force.
-- KEYS: `applied`, the epoch. ARGV: a position as 16 hexadecimal digits, which sort as strings;
-- what was recorded before; the epoch in which that was recorded, or 0.
-- A dataset that holds less has lost writes, and must not look as if it had not. In another epoch,
-- positions may belong to another history.
local epoch = redis.call('GET', KEYS[2]) or '0'
if epoch ~= ARGV[3] then
  return redis.error_reply('LOST the epoch ' .. ARGV[3] .. ', found ' .. epoch)
end
local held = redis.call('GET', KEYS[1])
if not held or #held ~= 16 or held < ARGV[2] then
  return redis.error_reply('LOST ' .. (held or 'nothing') .. ' is left of ' .. ARGV[2])
end
if held < ARGV[1] then
  redis.call('SET', KEYS[1], ARGV[1])
end
return 1
