-- KEYS: the last report's number of this process, revoked keys, replicas' beats (leases, then lines).
-- Returns JSON: levels, revoked, beats, repaired. Keys of tenants and days follow from what is told.
local heard, revoked, beats, lines = KEYS[1], KEYS[2], KEYS[3], KEYS[4]

expect(heard, 'string')
local first = told.number > (number(redis.call('GET', heard), 0, 2 ^ 53) or 0)
if first then redis.call('SET', heard, string.format('%d', told.number), 'EX', 7 * 86400) end

local levels = {}
for tenant, part in pairs(told.tenants) do
  local places, owners, bucket = part.keys[1], part.keys[2], part.keys[3]
  prune(places, owners, now)
  for _, free in ipairs(part.released) do release(places, owners, free.place, free.owner) end
  local rows = level(bucket, part.limits, part.level, now)
  for _, held in ipairs(part.held) do
    local known = redis.call('ZSCORE', places, held.place) and redis.call('HGET', owners, held.place)
    if not known or known == held.owner then
      lease(places, owners, held.place, held.owner, now + told.lease_s, told.lease_s)
      if rows and not known then rows = rows - held.rows end
    end
  end
  if rows then
    if first then rows = math.min(part.limits.capacity, rows - part.charge) end
    keep(bucket, part.limits, rows, now)
    levels[tenant] = rows
  end
end

if first then
  for _, entry in ipairs(told.usage) do
    local key, field, count = entry[1], entry[2], entry[3]
    if redis.call('TYPE', key).ok ~= 'hash' and redis.call('EXISTS', key) == 1 then
      redis.call('RENAME', key, key .. ':damaged')  -- not ours to throw away
      repaired()
    end
    if type(redis.pcall('HINCRBY', key, field, count)) ~= 'number' then  -- no integer, or too large a one
      redis.call('HSET', key, field .. ':damaged', redis.call('HGET', key, field))
      redis.call('HSET', key, field, count)
      repaired()
    end
    redis.call('EXPIRE', key, 400 * 86400)
  end
end

expect(revoked, 'set')
for _, id in ipairs(told.revoked) do redis.call('SADD', revoked, id) end

prune(beats, lines, now)
lease(beats, lines, told.replica, told.beat, now + told.beat_s, told.beat_s)
local seen = {}
for _, name in ipairs(redis.call('ZRANGE', beats, 0, 255)) do
  local line = redis.call('HGET', lines, name)
  if line and #line <= 4096 then seen[#seen + 1] = {name, line} end
end
local ids = redis.call('SRANDMEMBER', revoked, 100000)
expect('pilotfish:repaired', 'string')
local mended = number(redis.call('GET', 'pilotfish:repaired'), 0, 2 ^ 53) or 0
return cjson.encode({levels = levels, revoked = ids, beats = seen, repaired = mended})
