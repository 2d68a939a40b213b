from django.apps import AppConfig
from django.db.models.signals import post_delete


class AccountsConfig(AppConfig):
    name = "accounts"

    def ready(self) -> None:
        from allauth.account.signals import user_signed_up

        from accounts import signals

        user_signed_up.connect(signals.count_registration)
        post_delete.connect(signals.remove_avatar, sender="accounts.User")
