-- KEYS[1]: a key. ARGV: a value in its envelope, the position it shows as 16 hexadecimal digits, milliseconds until
-- it expires. A value that shows a later position stays; a lease does not, so what its holder read is refused.
local held = redis.call('GET', KEYS[1])
if held then
  local shown = string.match(held, '^V:%x+ (%x+) ')
  if shown and #shown == 16 and shown > ARGV[2] then
    return 0
  end
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[3])
return 1
