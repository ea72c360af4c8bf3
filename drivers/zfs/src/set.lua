-- Sets user properties of a dataset, all of them at once. The result is { set = { error = number } }.
local args = ...
for property, value in pairs(args.properties) do
    local failed = zfs.sync.set_prop(args.name, property, value)
    if failed ~= 0 then
        return { set = { error = tostring(failed) } }
    end
end
return { set = { error = "0" } }
