#include "safetensors/key_scopes.hpp"

#include <gtest/gtest.h>

namespace safering::safetensors {
namespace {

TEST(KeyScopes, FindsAKeyThatStandsTwice) {
    KeyScopes scopes;
    scopes.open();
    for (const char* key : {"a", "b", "", "c", "b"})
        scopes.add(key);
    EXPECT_EQ(scopes.close(), "b");
}

TEST(KeyScopes, AnEmptyObjectHasNone) {
    KeyScopes scopes;
    scopes.open();
    EXPECT_EQ(scopes.close(), std::nullopt);
}

TEST(KeyScopes, KeepsScopesApart) {
    KeyScopes scopes;
    scopes.open();
    scopes.add("a");
    for (int i = 0; i < 2; ++i) {
        scopes.open();
        scopes.add("a");
        scopes.add("b");
        EXPECT_EQ(scopes.close(), std::nullopt);
    }
    scopes.add("b");
    EXPECT_EQ(scopes.close(), std::nullopt);
}

TEST(KeyScopes, ComparesWholeKeys) {
    KeyScopes scopes;
    scopes.open();
    scopes.add(std::string_view("a\0b", 3));
    scopes.add(std::string_view("a\0c", 3));
    scopes.add("a");
    EXPECT_EQ(scopes.close(), std::nullopt);
}

TEST(KeyScopesDeathTest, AssertsOnAKeyOutsideOfObjects) {
    KeyScopes scopes;
    EXPECT_DEATH(scopes.add("a"), "assertion failed");
    EXPECT_DEATH(static_cast<void>(scopes.close()), "assertion failed");
}

} // namespace
} // namespace safering::safetensors
