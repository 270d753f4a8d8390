#!lua flags=allow-oom
-- Raises a watermark. A lower position leaves it.
-- KEYS[1]: the watermark. ARGV[1]: a position as 16 hexadecimal digits, which sort as strings.
local held = redis.call('GET', KEYS[1])
if held and #held == 16 and held >= ARGV[1] then
  return 0
end
redis.call('SET', KEYS[1], ARGV[1])
return 1
