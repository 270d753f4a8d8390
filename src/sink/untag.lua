#!lua flags=allow-oom
-- Deletes keys, values and leases alike, and removes them from a set. Returns how many keys there
-- were.
-- KEYS: the set, then some of its members. Both happen at once, so that no member is left whose key
-- exists and was not deleted.
local removed = 0
for i = 2, #KEYS do
  removed = removed + redis.call('UNLINK', KEYS[i])
  redis.call('SREM', KEYS[1], KEYS[i])
end
return removed
