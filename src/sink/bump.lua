#!lua flags=allow-oom
-- KEYS: version keys. ARGV[i]: the decimal position to which KEYS[i] rises. Decimals without leading
-- zeros compare by length, then as strings; Lua's numbers lose exactness above 2^53.
for i, key in ipairs(KEYS) do
  local held = redis.pcall('GET', key)
  local wanted = ARGV[i]
  local rises = true
  if type(held) == 'string' and string.match(held, '^[1-9]%d*$') then
    rises = #held < #wanted or (#held == #wanted and held < wanted)
  end
  if rises then
    redis.call('SET', key, wanted)
  end
end
return #KEYS
