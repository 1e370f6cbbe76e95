-- KEYS: places, their owners, the bucket. Returns JSON: refused, places, level, wait.
local places, owners, bucket = KEYS[1], KEYS[2], KEYS[3]
local limits, held = told.limits, told.held
prune(places, owners, now)
for _, free in ipairs(told.released) do release(places, owners, free.place, free.owner) end

local rows = level(bucket, limits, told.level, now)
local function answer(refused, wait)
  return cjson.encode({refused = refused, places = redis.call('ZCARD', places), level = rows, wait = wait})
end

local known = redis.call('ZSCORE', places, held.place) and redis.call('HGET', owners, held.place)
if not known then
  if limits.max_generations and redis.call('ZCARD', places) >= limits.max_generations then
    return answer('places', 0)
  end
  if rows then
    local wait = (math.min(held.rows, limits.capacity) - rows) / limits.rows_per_s
    if wait > 0 then return answer('rows', wait) end
  end
end
if rows and known ~= held.owner then
  rows = math.min(limits.capacity, rows - held.rows)
  keep(bucket, limits, rows, now)
end
lease(places, owners, held.place, held.owner, now + told.lease_s, told.lease_s)
return answer('', 0)
