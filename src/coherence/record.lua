#!lua flags=allow-oom
-- KEYS[1]: `applied`. ARGV[1]: a position as 16 hexadecimal digits, which sort as strings. ARGV[2]: what was
-- recorded before. A dataset that knows less has lost writes, and must not look as if it had not.
local held = redis.call('GET', KEYS[1])
if not held or #held ~= 16 or held < ARGV[2] then
  return redis.error_reply('LOST ' .. (held or 'nothing') .. ' is left of ' .. ARGV[2])
end
if held < ARGV[1] then
  redis.call('SET', KEYS[1], ARGV[1])
end
return 1
