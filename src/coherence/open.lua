#!lua flags=allow-oom
-- KEYS[1]: the epoch. KEYS[2]: the id of the last broadcast. Begins the first epoch where there is none,
-- and returns both.
redis.call('SET', KEYS[1], '1', 'NX')
return {redis.call('GET', KEYS[1]), redis.call('GET', KEYS[2])}
