// The ways to save and load a model whose allocations fail.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include <safering/save_load.hpp>

#include "../checkpoint/model.hpp"

namespace safering::test {

/// What saves and loads of one kind have in common. What fails is said or thrown.
struct Way {
    std::string name;
    std::function<Result<void>(const Model&, const std::string&, const std::shared_ptr<Reactor>&)>
        save;
    std::function<Result<void>(const Model&, const std::string&, const std::shared_ptr<Reactor>&)>
        load;
};

Way checkpoint_way(std::string name, Sharding sharding, WriterOptions options);
/// One file without a manifest.
Way file_way();
/// By two ranks, each of which takes bytes of the other.
Way exchange_way(ExchangeWay how);
/// By an AsyncSaver of one rank.
Way saver_way();
/// By AsyncSavers of two ranks.
Way two_savers_way();

} // namespace safering::test
