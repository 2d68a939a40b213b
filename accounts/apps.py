from django.apps import AppConfig
from django.db.models.signals import post_delete, post_migrate, pre_delete


class AccountsConfig(AppConfig):
    name = "accounts"
    verbose_name = "Users"  # in the admin, where allauth already has "Accounts"
    role_permissions = {"maintainer": ("manage_members",)}

    def ready(self) -> None:
        from allauth.account.signals import email_confirmed, user_logged_in, user_signed_up
        from allauth.mfa.signals import authenticator_added, authenticator_removed, authenticator_reset
        from allauth.mfa.signals import authentication_failed as factor_failed

        from accounts import audited, members, own_data, roles, sessions, signals

        user_signed_up.connect(signals.count_registration)
        email_confirmed.connect(signals.release_address)
        audited.connect()
        user_logged_in.connect(sessions.begin)
        factor_failed.connect(signals.factor_failed)
        post_migrate.connect(roles.correct_groups)
        authenticator_added.connect(signals.factor_added)
        authenticator_removed.connect(signals.factor_removed)
        authenticator_reset.connect(signals.codes_replaced)
        pre_delete.connect(members.before_deletion, sender="accounts.User")
        pre_delete.connect(own_data.forget_sign_on, sender="accounts.User")
        post_delete.connect(members.after_deletion, sender="accounts.User")
        post_delete.connect(signals.remove_avatar, sender="accounts.User")
