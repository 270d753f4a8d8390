-- Gives a lease back if the key still holds it.
-- KEYS[1]: a leased key. ARGV[1]: the token of the grant.
local held = redis.call('GET', KEYS[1])
if held and string.sub(held, 1, #ARGV[1]) == ARGV[1] then
  return redis.call('DEL', KEYS[1])
end
return 0
