-- Removes members of a set whose keys do not exist. Returns how many.
-- KEYS: the set, then some of its members.
-- Both happen at once: a key that joins is leased, so it exists.
local removed = 0
for i = 2, #KEYS do
  if redis.call('EXISTS', KEYS[i]) == 0 then
    removed = removed + redis.call('SREM', KEYS[1], KEYS[i])
  end
end
return removed
