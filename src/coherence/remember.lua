#!lua flags=allow-oom
-- KEYS[1]: where the id of the last broadcast is kept. ARGV[1]: the id.
redis.call('SET', KEYS[1], ARGV[1])
return 1
