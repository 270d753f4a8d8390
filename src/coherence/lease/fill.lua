-- Stores a value if the key still holds what the grant was given for. Returns whether it did.
-- KEYS[1]: a leased key. ARGV: the token of the grant, the value, milliseconds until it expires.
local held = redis.call('GET', KEYS[1])
if held and string.sub(held, 1, #ARGV[1]) == ARGV[1] then
  redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
  return 1
end
return 0
