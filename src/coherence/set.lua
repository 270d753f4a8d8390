#!lua flags=allow-oom
-- KEYS[1] becomes ARGV[1].
redis.call('SET', KEYS[1], ARGV[1])
return 1
